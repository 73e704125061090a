"""Which energies decided: the contribution of each energy band to the decision between two classes, with its spread.

`contributions` explains a model, spectra or the pixels of a prepared acquisition; `decision` is what a model decides
by, exact where it is a sum over channels; `result` is the explanation as a value; `files` takes a file to one.
"""

from eelsflow.explanation.contributions import explain
from eelsflow.explanation.files import explain_file
from eelsflow.explanation.result import Explanation

__all__ = ["Explanation", "explain", "explain_file"]
