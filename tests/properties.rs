//! What must hold for every input: quoting through a real `sh`, sizes, addresses.

use std::process::Command;

use nodegraft::core::spec::{Size, parse_address};
use nodegraft::core::template::{Templates, shell_quote};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_real_shell_reads_back_what_was_quoted(text in "[^\u{0}]{0,40}") {
        let output = Command::new("sh").arg("-c").arg(format!("printf %s {}", shell_quote(&text))).output().unwrap();
        prop_assert_eq!(String::from_utf8_lossy(&output.stdout), text);
    }

    #[test]
    fn the_sh_filter_quotes_as_the_function_does(text in "[^\u{0}]{0,40}") {
        let templates = Templates::with([("t".to_owned(), "{{ v | sh }}".to_owned())].into()).unwrap();
        let rendered = templates.render("t", &serde_json::json!({"v": &text})).unwrap();
        prop_assert_eq!(rendered, shell_quote(&text));
    }

    #[test]
    fn a_size_is_read_back_from_how_it_is_shown(bytes in 1_u64..(1 << 50)) {
        let size = Size(bytes);
        prop_assert_eq!(size.to_string().parse::<Size>().unwrap(), size);
    }

    #[test]
    fn a_size_without_unit_is_refused(number in 0_u64..1_000_000) {
        prop_assert!(number.to_string().parse::<Size>().is_err());
    }

    #[test]
    fn an_address_keeps_its_parts(a in 1_u8..224, b: u8, c: u8, d: u8, prefix in 0_u8..=32) {
        let text = format!("{a}.{b}.{c}.{d}/{prefix}");
        let net = parse_address(&text).unwrap();
        prop_assert_eq!(net.to_string(), text);
        let bare = format!("{a}.{b}.{c}.{d}");
        prop_assert!(parse_address(&bare).is_err());
    }
}
