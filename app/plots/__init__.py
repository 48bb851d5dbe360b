"""Pictures of scores: pure functions from numbers to SVG.

A drawing uses classes and attributes only, so that it lives inside a page under a strict Content-Security-Policy; the
page brings `plots.css`. Alone, as a file or an API's answer, the same drawing has that style sheet inside it. Our own
rather than a plotting library: those write inline styles, embed fonts, or need a browser with a script.

Orange raises an output and blue lowers it, as in the heat maps: colour-blind people can tell them apart, and no
meaning hangs on colour alone. Numbers show as tooltips; whoever shows a drawing puts them in a table beside it.
"""
