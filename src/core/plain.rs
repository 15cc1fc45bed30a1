//! What a guest sends, as a terminal may show it: one line of printable characters. A guest is somebody else's machine,
//! and an escape sequence in a log line could rewrite what the user sees.

/// Without escape sequences and control characters; of what overwrote itself, as a progress bar does, the last.
pub fn line(text: &str) -> String {
    let text = text.trim_end_matches(['\r', '\n']);
    without_escapes(text.rsplit('\r').next().unwrap_or(text)).collect()
}

/// The same of each line of a text.
pub fn lines(text: &str) -> String {
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn without_escapes(text: &str) -> impl Iterator<Item = char> + '_ {
    let mut chars = text.chars().peekable();
    std::iter::from_fn(move || {
        loop {
            match chars.next()? {
                '\u{1b}' => match chars.next() {
                    Some('[') => skip_parameters(&mut chars),
                    Some(']' | 'P' | 'X' | '^' | '_') => skip_string(&mut chars),
                    // Those of three characters name a character set.
                    Some('(' | ')' | '*' | '+' | '#' | '%' | ' ') => drop(chars.next()),
                    _ => {}
                },
                '\u{9b}' => skip_parameters(&mut chars),
                '\u{90}' | '\u{98}' | '\u{9d}' | '\u{9e}' | '\u{9f}' => skip_string(&mut chars),
                '\t' => return Some(' '),
                c if c.is_control() || is_invisible(c) => {}
                c => return Some(c),
            }
        }
    })
}

type Rest<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// Up to the letter that ends a control sequence.
fn skip_parameters(chars: &mut Rest<'_>) {
    while let Some(c) = chars.peek() {
        match c {
            ' '..='?' => drop(chars.next()),
            '@'..='~' => {
                chars.next();
                return;
            }
            _ => return,
        }
    }
}

/// Up to the end of a control string, such as a window's title.
fn skip_string(chars: &mut Rest<'_>) {
    while let Some(c) = chars.next() {
        match c {
            '\u{7}' | '\u{9c}' => return,
            '\u{1b}' => {
                chars.next_if_eq(&'\\');
                return;
            }
            _ => {}
        }
    }
}

/// What turns the direction of writing, or breaks a line, unseen.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_text_is_left() {
        for (sent, shown) in [
            ("plain text, ünïcödé", "plain text, ünïcödé"),
            ("\u{1b}[1;31mred\u{1b}[0m", "red"),
            ("\u{1b}]0;a title\u{7}after", "after"),
            ("\u{1b}]0;a title\u{1b}\\after", "after"),
            ("\u{1b}Pqsixel\u{1b}\\after", "after"),
            ("\u{1b}(Bafter", "after"),
            ("\u{1b}cafter", "after"),
            ("\u{9b}2Jafter", "after"),
            ("10%\r20%\r100%\r", "100%"),
            ("a\tb\u{8}\u{7}\0c", "a bc"),
            ("user\u{202e}txt", "usertxt"),
            ("unended \u{1b}[31", "unended "),
            ("unended \u{1b}]0;x", "unended "),
            ("the end \u{1b}", "the end "),
        ] {
            assert_eq!(line(sent), shown, "{sent:?}");
        }
        assert_eq!(lines("a\u{1b}[1m\nb"), "a\nb");
    }
}
