"""How much of each class a pixel holds: least squares on reference spectra that adapt to the acquisition.

`shapes` turns prepared spectra into coarse shapes whose scale and noise are known, `references` is what a training set
says of the classes' shapes and of how far acquisitions differ, `structure` tells whether a field holds one phase or
two, `field` is the inference for the pixels of one acquisition.
"""
