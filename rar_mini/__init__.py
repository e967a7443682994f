"""Rubrics as Rewards in a few files: the nouns. The verbs (train, judge, evaluate) stand one folder up."""
