"""Which training pairs made a fine-tuned model say this.

Context: raw gradient products rank long, odd pairs first, similar texts are not causes, and a gradient of another loss
than the one that was trained with explains another model. Decision: a training file becomes `records`, records become
`examples` by the model's own chat template (`rendering`), and each example says which of its tokens counted in
training. `mask_check` holds that against the loss that the trainer wrote down. Of each example two small vectors are
kept: a sketched gradient of the answer's loss, weighted by what fine-tuning taught, and the state behind the question.
Consequence: one forward and backward pass over the training data, done once; a question costs one pass and one exact
scan, and an answer that fine-tuning did not make gets an empty list.
"""
