"""Settings of the documentation builder. Builds offline: nothing is fetched."""

import modelserve

project = "modelserve"
author = "The modelserve developers"
copyright = author
version = release = modelserve.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
highlight_language = "text"

myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

# Docstrings mark code with single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# A long signature has a line for each parameter.
python_maximum_signature_line_length = 130

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = "modelserve"
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
