"""What a person does not accept of a report or of a check: rules, policies and baselines."""
