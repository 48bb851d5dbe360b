"""The wire of SeekrFlow: training files, models, deployments, chats, sources.

Context: the vendor's client reads only one line of JSON, only status 200, and loses the body of any 5xx. It reports
unknown values of closed lists as errors of its own. Decision: what a user can do something about is a 4xx on these
routes, a full queue included (`router`). Every registered model has a deployment from the start, whose id derives from
its name, so that an id that was written down stays good; only what was said of a deployment is a row. Consequence: the
models of the command line and of the native routes show up here without a further step.
"""
