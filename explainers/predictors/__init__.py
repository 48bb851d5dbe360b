"""Models of tables in safe formats: a file per format, one table of them (`formats`), one way to use them (`binding`).

Context: model files come from users, and the usual way to store one (pickle) runs whatever its author wrote.
Decision: a file is recognised by its content and refused when it could carry code. The boosters' own readers trust the
numbers in a file, so every tree is checked here before they see it; ONNX is walked once for paths to other files;
scikit-learn's format rebuilds Python objects, so it is opened in a process with hard limits, where the model stays.
Consequence: a bad file is an error with a reason, never a crash or an execution. What a file says of itself
(`Signature`) is held against the declared schema once, in `binding`, and a difference is told by its column or class.
Libraries are imported when a file of their format is opened, never before.
"""
