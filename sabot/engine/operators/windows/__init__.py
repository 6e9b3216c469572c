"""Windows of time: tumbling, hopping and cumulative windows (`fixed`), sessions (`sessions`), and the first n rows of
a window (`top`). `panes` divides windows into panes, `merged` merges the panes of a window, `sparse` has the panes with
few rows.
"""
