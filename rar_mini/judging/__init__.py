"""How judges are asked: servers, weights in this process, words; and what asking costs."""
