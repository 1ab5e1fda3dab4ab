//! Splitting and places; what is refused is tested with the documents.

use super::*;

fn chunks(text: &str) -> (Vec<(u32, &str)>, usize) {
    let mut findings = Findings::default();
    let list = split("f", text, 1, &mut findings).into_iter().map(|chunk| (chunk.line, chunk.text)).collect();
    (list, findings.len())
}

#[test]
fn documents_end_at_their_marker_and_begin_behind_it() {
    assert_eq!(chunks("a: 1\n---\nb: 2\n"), (vec![(1, "a: 1\n"), (3, "b: 2\n")], 0));
    assert_eq!(chunks("# head\n\n--- # first\na: 1\n"), (vec![(4, "a: 1\n")], 0));
    assert_eq!(chunks("a: 1\r\n---\r\nb: 2"), (vec![(1, "a: 1\r\n"), (3, "b: 2")], 0));
    assert_eq!(chunks("a: '---'\n ---\n"), (vec![(1, "a: '---'\n ---\n")], 0));
    assert_eq!(chunks("a: 1\n---\n---\nb: 2\n").1, 1, "an empty document");
    assert_eq!(chunks("--- a\n").1, 2, "content on the marker's line, and then nothing");
}

#[test]
fn a_marker_inside_a_block_scalar_ends_the_document_as_yaml_says() {
    let (list, _) = chunks("a: |\n  x\n---\nb: 2\n");
    assert_eq!(list.len(), 2);
}

#[test]
fn places_count_lines_of_the_file_and_characters_of_the_line() {
    let mut findings = Findings::default();
    let root = parse("f", Chunk { text: "é: [x, yy]\nb:\n  c: 1\n", line: 10 }, &mut findings).unwrap();
    let Value::Map(entries) = root.value else { panic!("a mapping") };
    let Value::List(items) = &entries[0].1.value else { panic!("a list") };
    assert_eq!(items[1].at, Position { line: 10, column: 8 });
    assert_eq!(entries[1].1.at, Position { line: 12, column: 3 });
}
