"""The pages at `/unprompt/`: what is known of every task, for a person with a browser. Read from the store, without
scripts, without a network."""
