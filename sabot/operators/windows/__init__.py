"""Windows of event time: tumbling, hopping and cumulative windows (`fixed`), sessions, and the first n rows of a
window (`top`). `panes` and `merged` divide windows into panes and put them together.
"""
