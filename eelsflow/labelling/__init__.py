"""From a folder of acquisitions to a manifest and truth files, and what to label next.

`discover` writes the manifest; `regions` turns what a person draws into the truth of every pixel; `field` is what she
looks at; `page` and `serve` let her draw; `suggest` says where a label teaches a model most.
"""
