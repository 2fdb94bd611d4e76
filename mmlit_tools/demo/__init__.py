"""Run the demos: data, training, evaluation, pictures."""
