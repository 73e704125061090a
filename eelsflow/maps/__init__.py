"""Maps of oxidation state: class, probability and phase fractions for every pixel of an acquisition.

`mapping` takes an acquisition to its map, `result` is the map, `pixels` the inference, `build` puts both together,
`judge` says what is wrong with a map, `write` puts it on disk, `registry` finds models.
"""

from eelsflow.maps.mapping import check_file, classify, classify_file
from eelsflow.maps.registry import check_model, find_model, register_model
from eelsflow.maps.result import Map
from eelsflow.maps.write import map_product

__all__ = [
    "Map",
    "check_file",
    "check_model",
    "classify",
    "classify_file",
    "find_model",
    "map_product",
    "register_model",
]
