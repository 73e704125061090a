"""What a person reads: figures, the report of a study, the picture of a map.

Takes plain arrays, tables and the files of a results directory; knows no model. matplotlib and jinja2 load when
something is drawn, not when this package is imported.
"""

from eelsflow.report.page import build_report

__all__ = ["build_report"]
