//! Reads the tables kubectl prints.

/// A printed table: column names, and rows cut at the columns' places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// Columns are separated by two or more spaces; a cell may be wider than its header only in the last column.
    pub fn parse(text: &str) -> Table {
        let mut lines = text.lines();
        let header = lines.next().unwrap_or("");
        let starts = column_starts(header);
        let cut = |line: &str| -> Vec<String> {
            let letters: Vec<char> = line.chars().collect();
            let cell = |i: usize| {
                let end = starts.get(i + 1).copied().unwrap_or(usize::MAX).min(letters.len());
                let start = starts[i].min(letters.len());
                letters[start..end].iter().collect::<String>().trim().to_owned()
            };
            (0..starts.len()).map(cell).collect()
        };
        Table { columns: cut(header), rows: lines.filter(|l| !l.is_empty()).map(cut).collect() }
    }

    /// The cell of `row` under `column`.
    ///
    /// # Panics
    /// When there is no such row or column.
    #[track_caller]
    pub fn cell(&self, row: usize, column: &str) -> &str {
        let Some(i) = self.columns.iter().position(|c| c == column) else {
            panic!("no column {column:?} in {:?}", self.columns)
        };
        match self.rows.get(row) {
            Some(cells) => &cells[i],
            None => panic!("no row {row} in {self:?}"),
        }
    }

    /// The row whose first cell is `name`.
    pub fn row(&self, name: &str) -> Option<&[String]> {
        self.rows.iter().find(|r| r.first().is_some_and(|c| c == name)).map(Vec::as_slice)
    }
}

fn column_starts(header: &str) -> Vec<usize> {
    let letters: Vec<char> = header.chars().collect();
    let blank = |i: usize| letters.get(i).is_none_or(|c| *c == ' ');
    (0..letters.len()).filter(|&i| !blank(i) && (i == 0 || (blank(i - 1) && (i < 2 || blank(i - 2))))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_columns_whose_names_hold_a_space() {
        let text = "NAME   READY   NOMINATED NODE   READINESS GATES\nweb    1/1     <none>           <none>\n";
        let table = Table::parse(text);
        assert_eq!(table.columns, ["NAME", "READY", "NOMINATED NODE", "READINESS GATES"]);
        assert_eq!(table.cell(0, "READINESS GATES"), "<none>");
        assert_eq!(table.row("web").map(<[String]>::len), Some(4));
    }

    #[test]
    fn an_empty_answer_is_an_empty_table() {
        assert_eq!(Table::parse("").rows.len(), 0);
    }
}
