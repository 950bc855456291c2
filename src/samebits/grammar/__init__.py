"""What an output may look like: schemas, regular expressions, choices and grammars, and the masks that enforce them."""
