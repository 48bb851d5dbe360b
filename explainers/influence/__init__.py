"""Which training pairs made a fine-tuned model say this.

Context: raw gradient products rank long, odd pairs first, similar texts are not causes, and a gradient of another loss
than the one that was trained with explains another model. Decision: a training file becomes `records`, records become
`examples` by the model's own chat template (`rendering`), and each example says which of its tokens counted in
training. `mask_check` holds that against the loss that the trainer wrote down. Of each example three small vectors are
kept: a sketched gradient of the answer's loss, weighted by what fine-tuning taught, the state of the middle layer where
the question ends, and the mean state of the last layer over the answer. Consequence: one forward and backward pass over
the training data, done once; a question costs one pass and one exact scan, and an answer that fine-tuning did not make
gets an empty list.

Measured and left out: the last layer's state at the question's end alone (it already knows the kind of the answer, so
that all pairs of a kind look alike: on demo-qa 63 of 100 right pairs reached `medium`, 93 with two states); sketches
preconditioned by Kronecker factors (gradients alone forecast retraining better, .59 for .55, but not the impact score);
16 columns instead of 8 (the impact score gains .005, the index has four times the bytes); as the bound of `medium` the
score that one calibration prompt in a hundred exceeds, or the highest of them, or one beyond it by so many mean
excesses of the tail (a model that fine-tuning damaged answers sums as it answers a pair's question, and such a prompt
lies where right pairs of others do); how near the hidden states of the two questions or answers are, for the same
reason (what the texts share parts them: from .43 on for 98 in 100 right pairs, to .39 for prompts); and unrelated
examples drawn without a look at their texts (paraphrases of one fact sit in the last thousandth).
"""
