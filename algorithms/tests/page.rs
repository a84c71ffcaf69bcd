//! `docs/algorithms.md` has a row for every generator, with the class of its schedules.

use maypole_algorithms::collective::all;

const PAGE: &str = include_str!("../../docs/algorithms.md");

#[test]
fn every_generator_is_on_the_page() {
    for generator in all() {
        let row = format!("| {} | `{}` | ", generator.collective, generator.name);
        let line = PAGE.lines().find(|line| line.starts_with(&row));
        let line = line.unwrap_or_else(|| panic!("no row {row}: run scripts/measure-algorithms"));
        let class = generator.schedule(generator.collective_with_root(0), 11).class.to_string();
        assert!(line.contains(&format!(" | {class} | ")), "{line}: its class is {class}");
    }
}
