"""The four figures of the paper, for any model and data set, and the other figures of the report.

    python -m experiments.paper.figures
    python -m experiments.paper.figures --embeddings FILE.npz

The script writes the figures OUTPUT/figures/CASE/figures/*.png and *.svg of the first protocol, and the page
OUTPUT/figures/CASE/index.html that shows them. The paper's figures are tsne, label-similarity,
error-quantiles and parts.
"""

from bliss_jax.evaluation import Settings, evaluate
from bliss_jax.report import write_report
from experiments.common import Options, cases, command, experiment, slug, test_images, write


@experiment()
def main(options: Options) -> None:
    """Write the figures as PNG and SVG, and an HTML page with all of them."""
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
