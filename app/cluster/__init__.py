"""Models that run on a Ray cluster: the second implementation of the runtime's port.

Context: one machine's device serves one piece of work at a time, and a user with many GPUs should not have to outgrow
the server. All computing passes through `Runtime.run`, which is given a closure over loaded models. Decision: with
`WHENCE_RAY_ADDRESS` the models that complete prompts are outlines here (`explainers.outlines`) and run in replicas of a
Ray Serve application, one application for each set of weights and scaling. A closure travels as it is; what both sides
have (models, indexes, who is told of progress) travels by its name (`parcels`). A replica is the in-process runtime
with one model: turns, priorities and fairness mean there what they mean here. Deadlines, single-flight and everything
stored stay with whoever asks. A long job that this process leads is helped by a task on each node that can
(`node_tasks`), which leases shards from the database as a worker does. Consequence: use cases know nothing of it; work
that a replica's end has cut short is done again by another, since answers are deterministic, and so are the shards of a
lost node; predictors of rows, and the leading of jobs, stay in this process. Ray is imported where it is configured,
and nowhere else.
"""
