"""Settings of Sphinx for the site. `build.py` copies this file beside the sources that it assembles."""

import re

project, author, html_title = "The RUM companion", "", "The RUM companion"
project_copyright = "MIT licence"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
mathjax_path = "mathjax/tex-chtml.js"
exclude_patterns = ["files", "extra", "doctrees", "html", "jupyter_execute"]
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type", "misc.highlighting_failure"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"                                   # docstrings say shapes and units
pygments_style = "a11y-high-contrast-light"

html_theme = "sphinx_book_theme"
html_static_path, html_extra_path = ["static"], ["extra"]
html_css_files = ["site.css"]
html_favicon = "static/favicon.svg"
html_context = {"default_mode": "auto"}                      # light or dark, as the reader's machine is set
html_domain_indices = False
html_show_sphinx = False
html_theme_options = {
    "home_page_in_toc": True, "show_navbar_depth": 1, "show_toc_level": 2, "use_download_button": True,
    "navbar_persistent": [], "navbar_start": [], "navbar_center": [], "navbar_end": [],
    "use_fullscreen_button": False, "use_source_button": False,
    "pygments_light_style": "a11y-high-contrast-light", "pygments_dark_style": "a11y-high-contrast-dark",
}


def plain(app, what, name, thing, options, lines):
    """Docstrings are plain text: a paragraph with columns or indentation is shown as it stands, any other as prose."""
    shown = []
    for part in re.split(r"\n\s*\n", "\n".join(lines)):
        if re.search(r"^ |\S  +\S", part, re.MULTILINE):
            shown += [".. code-block:: text", "", *(f"   {line}" for line in part.split("\n")), ""]
        else:
            text = re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", part)
            shown += [*re.sub(r"(?<!`)([*|_])(?=[^`]*(?:``[^`]*``[^`]*)*$)", r"\\\1", text).split("\n"), ""]
    lines[:] = shown


def setup(app):
    app.connect("autodoc-process-docstring", plain)
