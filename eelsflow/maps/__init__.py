"""Maps of oxidation state: class, probability and phase fractions for every pixel of an acquisition.

`classify` takes a file to its maps; `pixels` is the inference, `judge` says what is wrong with a map, `write` puts it
on disk, `registry` finds models.
"""

from eelsflow.maps.classify import check_file, classify_file
from eelsflow.maps.registry import check_model, find_model, register_model
from eelsflow.maps.write import map_product

__all__ = ["check_file", "check_model", "classify_file", "find_model", "map_product", "register_model"]
