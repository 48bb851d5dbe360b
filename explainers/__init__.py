"""Models and what explains them: maths, no HTTP, no SQL, no environment, no files but those handed in.

Context: libraries change a shared model (hooks, wrappers, patched forwards) and run one perturbation at a time.
Decision: a model is loaded with our own attention function (`attention_control`), which does nothing outside a pass
that says what to do; everything a method asks is a set of factors per column (`controls`), answered by one engine
(`suppression`) that recomputes only what a factor can change. Masks are the model's own, recorded in the base pass,
so that windows and whatever comes next need no code here. `self_test` holds each loaded model against its own eager
attention.
Consequence: exact on every architecture that lets its attention be replaced; the others are refused when they are
loaded.
Images: the vision tower runs once, outside all this, and its visual tokens are columns like any others, each with its
area of the whole image (`pictures`); images are never cropped or cut into sub-images, so that a score has one place.
What scores are worth is asked of the same engine: `noise` (rounding), `faithfulness` (removal), and `cost` says
beforehand what it will take; `sensitivity` is the engine's derivative, for the approximate methods.
Rows and texts: LIME and SHAP are our own few matrix products over the `predictor` protocols, not the packages', which
draw from global generators, call the model row by row and give no errors. Draws are shared by the rows of a bucket and
seeded by the question (`seeds`), linear algebra is done row by row in shapes that never change, so that an answer is
the same to the last bit in any company. The packages are what the tests agree with, and `agreement` asks the same of
the user's own model.
A method is one file in `methods/` and one line in `registry`, or in `surrogates` where it explains stored inferences; a
model format one function and one line in `loaders`.
"""
