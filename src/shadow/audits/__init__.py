"""Audits from the request to the report: a pair, a list of pairs, on this machine or on Ray."""
