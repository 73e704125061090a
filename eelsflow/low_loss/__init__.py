"""The low loss: where the energy axis has its zero, how thick the specimen is, and what plural scattering did.

`zero_loss` finds the zero-loss peak, `elastic` tells it from the first losses, `thickness` has t/lambda and the mean
free path, `deconvolution` takes the low loss out of a core loss; `pair` does all of it for a spectrum image.
"""
