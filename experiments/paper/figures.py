"""The paper's four figures, for any model and data set, and the other figures of the report.

    python -m experiments.paper.figures
    python -m experiments.paper.figures --embeddings FILE.npz

Writes OUTPUT/figures/CASE/figures/*.png and *.svg (tsne, label-similarity, error-quantiles and parts are
the paper's) and the page CASE/index.html that shows them, for the first protocol.
"""

from bliss_jax.evaluation import Settings, evaluate
from bliss_jax.report import write_report
from experiments.common import Options, cases, command, experiment, slug, test_images, write


@experiment()
def main(options: Options) -> None:
    """Figures as PNG and SVG, and a page."""
    pages = []
    for case in cases(options):
        embeddings, protocol = case.sets[0], case.protocols[0]
        evaluation = evaluate(embeddings, protocol, Settings(k=case.k))
        folder = options.output / "figures" / slug(f"{case.dataset}-{case.model}-{protocol.name}")
        images = test_images(options, case)
        page = write_report(
            folder, embeddings, protocol, [evaluation], images=images, command=command()
        )
        pages.append(str(page))
    write(options, "figures", "".join(f"- {page}\n" for page in pages), {"pages": pages})


if __name__ == "__main__":
    main()
