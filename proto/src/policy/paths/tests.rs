//! Templates against a naive matcher, and the bypasses that a path must not offer.

use proptest::prelude::*;

use super::*;

fn template(text: &str) -> PathTemplate {
    text.parse().unwrap()
}

#[test]
fn templates_match_whole_segments_and_trees_with_their_root() {
    let cases = [
        ("/v1/accounts/{id}", "/v1/accounts/42", true),
        ("/v1/accounts/{id}", "/v1/accounts/", false),
        ("/v1/accounts/{id}", "/v1/accounts", false),
        ("/v1/accounts/{id}", "/v1/accounts/42/x", false),
        ("/v1/admin/**", "/v1/admin", true),
        ("/v1/admin/**", "/v1/admin/", true),
        ("/v1/admin/**", "/v1/admin/a/b", true),
        ("/v1/admin/**", "/v1/administrator", false),
        ("/**", "/", true),
        ("/**", "/a/b", true),
        ("/", "/", true),
        ("/", "/a", false),
        ("/a/", "/a/", true),
        ("/a", "/a/", false),
        ("/A", "/a", false),
    ];
    for (text, path, expected) in cases {
        assert_eq!(template(text).matches(path), expected, "{text} {path}");
    }
}

#[test]
fn a_template_that_could_not_match_a_normal_path_is_refused() {
    for text in [
        "", "a", "/a/**/b", "/a*", "/{a", "/a{b}", "/{}", "/a//b", "/../a", "/a;b", "/a?b", "/%2f", "/%2F", "/**x",
        "/a b",
    ] {
        assert!(text.parse::<PathTemplate>().is_err(), "{text}");
    }
}

#[test]
fn paths_outside_the_normal_form_are_told_apart() {
    for path in ["/", "/a", "/a/", "/a/b-c_d~e", "/%C3%A9", "/a:b@c", "/a%20b"] {
        assert!(is_normal_path(path), "{path}");
    }
    for path in [
        "",
        "a",
        "//admin",
        "/a//b",
        "/admin%2f..",
        "/%5c",
        "/./",
        "/x/../admin",
        "/%2e%2e/x",
        "/%2E",
        "/%252f",
        "/a;x=1",
        "/a?q",
        "/a#f",
        "/a\\b",
        "/a\0",
        "/%00",
        "/a b",
        "/%c3",
        "/%4",
        "/%zz",
        "/%41",
        "http://evil/a",
        "/é",
    ] {
        assert!(!is_normal_path(path), "{path}");
    }
}

/// Straight from the words: split both, compare one by one.
fn naive(template: &str, path: &str) -> bool {
    let mut wanted: Vec<&str> = template.split('/').skip(1).collect();
    let given: Vec<&str> = path.split('/').skip(1).collect();
    let tree = wanted.last() == Some(&"**");
    if tree {
        wanted.pop();
    }
    (if tree { given.len() >= wanted.len() } else { given.len() == wanted.len() })
        && wanted.iter().zip(&given).all(|(w, g)| if w.starts_with('{') { !g.is_empty() } else { w == g })
}

proptest! {
    #[test]
    fn a_template_matches_what_the_naive_matcher_matches(
        template in "(/(a|b|\\{x\\})){1,4}(/\\*\\*)?",
        path in "(/(a|b|c)){1,5}/?|/",
    ) {
        prop_assert_eq!(template.parse::<PathTemplate>().unwrap().matches(&path), naive(&template, &path));
    }

    #[test]
    fn no_text_panics(template in ".{0,40}", path in ".{0,40}") {
        let normal = is_normal_path(&path);
        prop_assert!(!normal || (path.starts_with('/') && !path.contains("//") && !path.contains("..//")));
        if let Ok(template) = template.parse::<PathTemplate>() {
            let _ = template.matches(&path);
        }
    }
}
