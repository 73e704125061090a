"""Errors a user can act on: each says what was found, what was expected, why it matters and what to do.

Every class derives from `EelsflowError` (the command line turns it into one message and exit status 2)
and from the builtin that fits, so library users may catch either.
"""


class EelsflowError(Exception):
    """Bad input or a refused request; never a fault of the program itself."""


class InputError(EelsflowError, ValueError):
    """Input that cannot be used as it is."""


class UnreadableFileError(InputError):
    """A file that no reader understands, or that is damaged."""


class EdgeOutOfRangeError(InputError):
    """The energy axis does not show the edge that was asked for."""


class SpectrumImageSchemaError(InputError):
    """An array that does not follow the spectrum-image schema (see `eelsflow.spectrum_image`)."""


class StudyFileError(InputError):
    """A study file that does not follow the study model."""


class DataSetError(InputError):
    """Labelled spectra that cannot be split, searched or trained on."""


class UnusableModelError(EelsflowError, ValueError):
    """A trained model that is missing, damaged or for another edge. No `InputError`: no acquisition is to blame."""


class WorkerLostError(EelsflowError, RuntimeError):
    """Work that took every worker with it that it was given to, mostly for want of memory."""


class OutputPathError(EelsflowError, OSError):
    """A place that results cannot be written to."""


class MissingDependencyError(EelsflowError, ImportError):
    """An optional dependency that the requested work needs."""
