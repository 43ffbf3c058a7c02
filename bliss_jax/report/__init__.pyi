from bliss_jax.report.heat_maps import write_map as write_map
from bliss_jax.report.page import write_report as write_report
from bliss_jax.report.score_page import write_score_report as write_score_report
from bliss_jax.report.tables import print_bias as print_bias
from bliss_jax.report.tables import print_comparison as print_comparison
from bliss_jax.report.tables import print_evaluation as print_evaluation
from bliss_jax.report.tables import print_ood as print_ood
from bliss_jax.report.tables import print_summary as print_summary
