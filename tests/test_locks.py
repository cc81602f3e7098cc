"""Locks of models in use, where the folder of models is no store yet."""

from moerun.store.locks import model_in_use


def test_a_file_that_somebody_laid_into_the_folder_can_be_used(tmp_path):
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"GGUF")
    with model_in_use(tmp_path, lambda: path):
        assert path.is_file()
