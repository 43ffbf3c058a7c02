from bliss_jax.storage.csv_rows import csv_row as csv_row
from bliss_jax.storage.files import check_writable as check_writable
from bliss_jax.storage.files import replacing as replacing
from bliss_jax.storage.sealed import seal as seal
from bliss_jax.storage.sealed import unseal as unseal
from bliss_jax.storage.versions import package_versions as package_versions
