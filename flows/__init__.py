"""What a person runs: the chain, its runners, the recipes, the command line, Prefect."""
