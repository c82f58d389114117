"""Number formats of frozen weights: named in recipes, loaded with the model or laid on it."""

import logging

# On import it warns that an optional kernel would have to be downloaded, also when peft alone imports it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
