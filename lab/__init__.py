"""What came after Rubrics as Rewards: one recipe a file, and the world in which they are compared."""
