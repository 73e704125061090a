"""How the handbook is built: `make docs`.

The root of the repository is the source folder, so that the links of documents which people read in the repository are
those of the pages too. What it leads to from outside of the documents (scripts, study files) becomes a download.
"""

import os
import re
import tempfile
from pathlib import Path
from weakref import WeakSet

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

import eelsflow

ROOT = Path(__file__).parents[1]
GENERATED = "docs/generated"

project = "eelsflow"
release = version = eelsflow.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc", "sphinx_gallery.gen_gallery"]
root_doc = "docs/index"
exclude_patterns = [
    *(path.name for path in ROOT.iterdir() if path.name not in ("docs", "deployments", "CHANGELOG.md")),
    "docs/_build",
    "docs/gallery",
    "docs/templates",
    f"{GENERATED}/gallery/**/*.ipynb",
    f"{GENERATED}/gallery/*.py",
]

suppress_warnings = ["config.cache"]  # the gallery takes a function
myst_heading_anchors = 3
default_role = "py:obj"
numpydoc_show_class_members = False
maximum_signature_line_length = 80  # a parameter a line, with its type
autodoc_member_order = "bysource"

html_theme = "pydata_sphinx_theme"
html_title = "eelsflow"
templates_path = [str(ROOT / "docs/templates")]
html_static_path = ["static"]
html_sidebars = {"**": ["all-pages.html"]}
html_extra_path = ["static/index.html"]
html_css_files = ["handbook.css"]
html_copy_source = html_show_sourcelink = False
html_context = {"default_mode": "light"}
html_theme_options = {
    "navbar_center": [],
    "navbar_persistent": [],
    "navbar_end": ["search-field", "theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": [],
    "footer_end": [],
    "navigation_with_keys": False,
}

# Examples keep what they compute where nobody's is.
_home = tempfile.TemporaryDirectory(prefix="eelsflow-handbook-")
os.environ["EELSFLOW_HOME"] = _home.name
os.environ.setdefault("EELSFLOW_DATA", str(Path(__file__).resolve().parents[2] / "shared" / "data"))

_kept: WeakSet[Figure] = WeakSet()


def save_returned_figure(block, block_vars, gallery_conf):
    """Keep the figure that a block of an example ends with: the library's figures are of no global state."""
    figure = block_vars["example_globals"].get("___")
    if not isinstance(figure, Figure) or figure in _kept:
        return ""
    _kept.add(figure)
    path = next(block_vars["image_path_iterator"])
    figure.savefig(path)
    return figure_rst([path], gallery_conf["src_dir"])


sphinx_gallery_conf = {
    "examples_dirs": "docs/gallery",
    "gallery_dirs": f"{GENERATED}/gallery",
    "within_subsection_order": "FileNameSortKey",
    "capture_repr": (),
    "image_scrapers": ("matplotlib", save_returned_figure),
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "write_computation_times": False,
    "show_signature": False,
}


def for_the_pages(app, docname, source):
    """Lead to an example's page where a document names its script, and list the decisions beside their page."""
    source[0] = re.sub(r"\]\(((?:\.\./)*)gallery/(plot_\w+)\.py\)", r"](\1generated/gallery/\2.rst)", source[0])
    source[0] = source[0].replace("](gallery/GALLERY_HEADER.rst)", "](generated/gallery/index.rst)")
    if docname == "docs/decisions/README":
        source[0] += "\n```{toctree}\n:hidden:\n:glob:\n\n0*\n```\n"


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", for_the_pages)
