"""Calls the application's own operation with the plain client, looks for its actor in the tree, and prints both as JSON."""

import json
import sys

import eclosion

with eclosion.connect(sys.argv[1]) as kernel:
    greeted = kernel.call("greet.hello", {"name": "Guido"})
    actors = [actor.address for actor in kernel.kernel.tree().actors]
    print(json.dumps({"greeted": greeted, "is_in_the_tree": "/greet" in actors}))
