"""The clients: what each has alone, with the others and personalised; whom federation harmed, over all seeds."""

from comparisons import client, method, report, run

from simulations.comparison_clients import clients

FIRST = [client(0, 8.0, 2.0), client(1, 8.0, 5.0), client(2, 4.0, None)]
ALONE = [client(0, 8.0, 3.0), client(1, 8.0, 4.0), client(2, 4.0, 3.5)]
SECOND = [client(0, 8.0, 9.0), client(1, 8.0, 2.0)]
ALONE_SECOND = [client(0, 8.0, 9.5), client(1, 8.0, None)]


def federated(**more: object) -> dict[str, object]:
    return method("ours", "mixture", [run(0, 2.0, FIRST), run(1, 2.0, SECOND)], **more)


def local() -> dict[str, object]:
    return method("alone", "local", [run(0, 3.0, ALONE), run(1, 3.0, ALONE_SECOND)], local_of="ours", group="local")


def test_a_row_sets_a_client_alone_beside_the_federation_and_tells_of_harm() -> None:
    text = clients(report(ours=federated(), alone=local()))
    assert text == (
        "*ours*, federated, seed 0:\n\n"
        "| client | examples | answer tokens | backbone | local only | federated | federated is no better than |\n"
        "|---|---|---|---|---|---|---|\n"
        "| 0 | 10 | 1,234 | 8.000 | 3.000 | 2.000 |  |\n"
        "| 1 | 10 | 1,234 | 8.000 | 4.000 | 5.000 | local only |\n"
        "| 2 | 10 | 1,234 | 4.000 | 3.500 | no reply | local only and backbone |\n\n"
        "Over 2 seeds: federation left 2 of 4 no better than alone; 2 of 5 clients no better than their backbone.\n"
    )


def test_a_seed_without_its_local_run_has_empty_cells_and_does_not_count() -> None:
    alone = method("alone", "local", [run(1, 3.0, ALONE_SECOND)], local_of="ours")
    text = clients(report(ours=federated(), alone=alone))
    assert "| 0 | 10 | 1,234 | 8.000 |  | 2.000 |  |\n" in text
    assert "federation left 0 of 1 no better than alone;" in text


def test_personalised_figures_have_a_column_and_a_count() -> None:
    rows = [client(0, 8.0, 2.0, personalised_perplexity=1.5), client(1, 8.0, 2.0, personalised_perplexity=2.5)]
    text = clients(report(ours=method("ours", "mixture", [run(0, 2.0, rows)])))
    assert "| backbone | federated | personalised |" in text
    assert "| 8.000 | 2.000 | 1.500 |" in text
    assert text.endswith(
        "Over 1 seed: federation left 0 of 2 clients no better than their backbone; personalising made 1 of 2 better.\n"
    )


def test_rows_without_answer_tokens_have_no_such_column() -> None:
    old = [{key: value for key, value in row.items() if key != "num_tokens"} for row in FIRST]
    text = clients(report(ours=method("ours", "mixture", [run(0, 2.0, old)]), alone=local()))
    assert "answer tokens" not in text


def test_without_local_or_personalised_figures_there_is_no_table() -> None:
    assert clients(report(ours=federated(), alone=method("alone", "local", [], local_of="ours"))) == ""
