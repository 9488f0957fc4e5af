//! Aligned columns.

use super::{Style, calm};

/// The header and the rows, each column as wide as its widest cell.
pub fn lines(header: &[&str], rows: &[Vec<String>], style: Style) -> Vec<String> {
    let calmed = |row: &Vec<String>| row.iter().map(|cell| calm::text(cell).into_owned()).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(calmed).collect();
    let mut widths: Vec<usize> = header.iter().map(|name| name.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let head: Vec<String> = header.iter().map(|name| (*name).to_owned()).collect();
    let mut lines = vec![joined(&head, &widths, |cell| style.head(cell))];
    lines.extend(rows.iter().map(|row| joined(row, &widths, |cell| style.state(cell))));
    lines
}

fn joined(row: &[String], widths: &[usize], paint: impl Fn(&str) -> String) -> String {
    let last = row.len().saturating_sub(1);
    let mut line = String::new();
    for (at, (cell, width)) in row.iter().zip(widths).enumerate() {
        if at == last {
            line.push_str(&paint(cell));
        } else {
            // Padded before it is painted: colour has no width.
            line.push_str(&paint(&format!("{cell:<width$}")));
            line.push_str("  ");
        }
    }
    line.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_with_and_without_colour() {
        let rows = vec![
            vec!["j-01".to_owned(), "succeeded".to_owned(), "2m".to_owned()],
            vec!["j-0200".to_owned(), "running".to_owned(), "-".to_owned()],
        ];
        let plain = lines(&["JOB", "STATE", "AGE"], &rows, Style::plain());
        assert_eq!(plain, ["JOB     STATE      AGE", "j-01    succeeded  2m", "j-0200  running    -"]);
        let coloured = lines(&["JOB", "STATE", "AGE"], &rows, Style::coloured());
        assert!(coloured[1].contains("\x1b[32msucceeded\x1b[0m  2m"), "{:?}", coloured[1]);
    }
}
