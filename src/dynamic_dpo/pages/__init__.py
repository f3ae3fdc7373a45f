"""One kit for all HTML pages: a frame and shapes to fill, one style sheet, and one way in for all text.

`shapes` is what a report calls; ``templates/`` holds every piece of HTML and CSS of the package.
"""
