"""`unprompt demo`: the whole loop on this machine, with no key and no server of anybody else's."""
