"""An audit, from the plan to the report.

The order of the work and what it takes, the workers, the journal of what is done, one pair, a list
of pairs, and lists merged from several machines. Here alone checkpoints and spectra meet.
"""
