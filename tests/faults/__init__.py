"""Faults on purpose: a real server, its workers and its database under mixed load, broken at random moments.

Context: what an on-call engineer fears happens between two statements, on a Sunday, and no single test is there.
Decision: whole rounds on one data directory that is never made anew: load, one fault, repair, drain, then everything
that was ever acknowledged is compared with what is there. Clients keep the books; the server is never asked what it
has done. Consequence: a round takes some ten seconds, so `make test` has a few and this command has the rest:

    python -m tests.faults --rounds 100 --seed 0

Files: `world` (processes, disk), `load` (clients and their books), `strokes` (the faults), `audit` (the comparison).
"""
