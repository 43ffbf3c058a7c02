"""Prompts and dictionaries: the texts that images are compared with, and where they come from."""

from bliss_jax.text.dictionaries import describe_dictionary as describe_dictionary
from bliss_jax.text.dictionaries import dictionary_hash as dictionary_hash
from bliss_jax.text.dictionaries import dictionary_names as dictionary_names
from bliss_jax.text.dictionaries import exclude_labels as exclude_labels
from bliss_jax.text.dictionaries import find_overlap as find_overlap
from bliss_jax.text.dictionaries import load_dictionary as load_dictionary
from bliss_jax.text.prompts import CLIP_AD_ANOMALY as CLIP_AD_ANOMALY
from bliss_jax.text.prompts import MCM_PROMPT as MCM_PROMPT
from bliss_jax.text.prompts import PROMPT as PROMPT
from bliss_jax.text.prompts import fill_prompt as fill_prompt
