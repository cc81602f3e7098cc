from moerun.report.config_view import SettingRow, config_lines, value_text


def test_columns_line_up_and_changed_values_stand_out():
    rows = (
        SettingRow(key="context", value="auto", origin="default"),
        SettingRow(key="memory_strategy.ram_limit", value="8G", origin="./moerun.yaml:3"),
    )
    heading, default, changed = config_lines(rows)
    assert heading.plain == "KEY                        VALUE  ORIGIN"
    assert default.plain == "context                    auto   default"
    assert changed.plain == "memory_strategy.ram_limit  8G     ./moerun.yaml:3"
    assert [str(span.style) for span in default.spans] == ["dim"]
    assert changed.spans == []


def test_values_are_written_as_a_file_takes_them():
    assert value_text(True) == "true"
    assert value_text(["8G", "50%"]) == "[8G, 50%]"
    assert value_text({"blk.*": "cpu"}) == '{"blk.*": "cpu"}'
    assert value_text(2048) == "2048"
    assert value_text([]) == "[]"
