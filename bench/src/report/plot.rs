//! `--plot`: draws bus bandwidth and time by size, with logarithmic axes, as SVG.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;

use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::TableRow;
use super::number::general;

/// The width of the picture in pixels.
const WIDTH: u32 = 960;
/// The height of the title and of both charts. The legend is below them.
const CHARTS_HEIGHT: u32 = 430;
/// The height of a row of the legend and of the margin below the legend.
const LEGEND_ROW: u32 = 18;
/// The width of a column of the legend.
const LEGEND_COLUMN: u32 = 220;
/// The space in a chart's area to the left and to the right of the curves.
const LEFT_MARGIN: u32 = 70;
const RIGHT_MARGIN: u32 = 20;
/// Sizes of text. Plotters divides them by 1.24: these are about 12 and 15 pixels in the SVG.
const TEXT_SIZE: i32 = 15;
const TITLE_SIZE: i32 = 19;

/// Colors that color-blind people can distinguish (Okabe and Ito, 2008), and some more.
const COLORS: [RGBColor; 12] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x00, 0x00, 0x00),
    RGBColor(0x7f, 0x3c, 0x8d),
    RGBColor(0xa5, 0xa5, 0x00),
    RGBColor(0x8c, 0x56, 0x4b),
    RGBColor(0xe1, 0x57, 0x59),
    RGBColor(0x7f, 0x7f, 0x7f),
];
const GRID: RGBColor = RGBColor(0xe4, 0xe4, 0xe4);

type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<T = ()> = Result<T, Box<dyn Error>>;

/// What a curve shows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CurveKind {
    OutOfPlace,
    InPlace,
    Roof,
}

/// A curve: the index of its case (element type, reduction and root), which gives its color, and
/// its points by size.
struct Curve {
    case: usize,
    kind: CurveKind,
    bandwidth: BTreeMap<usize, f64>,
    microseconds: BTreeMap<usize, f64>,
}

/// The picture of a table.
///
/// # Errors
/// An internal error of the drawing library.
pub(crate) fn svg(collective: &str, nranks: u32, rows: &[TableRow]) -> Drawn<String> {
    let (cases, curves) = curves(rows);
    let legend_rows = 1 + cases.len().div_ceil(4).max(1) as u32;
    let mut svg = String::new();
    {
        let size = (WIDTH, CHARTS_HEIGHT + LEGEND_ROW * (legend_rows + 1));
        let canvas = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        canvas.fill(&WHITE)?;
        let (top, legend_area) = canvas.split_vertically(CHARTS_HEIGHT);
        let (title_area, charts) = top.split_vertically(32);
        let title = format!("{collective}, {nranks} ranks, host memory");
        text(&title_area, (WIDTH as i32 / 2, 18), HPos::Center, TITLE_SIZE, &title)?;
        let (left, right) = charts.split_horizontally(WIDTH / 2);
        chart(&left, "bus bandwidth (GB/s)", &curves, |curve| &curve.bandwidth)?;
        chart(&right, "time (us)", &curves, |curve| &curve.microseconds)?;
        legend(&legend_area, &cases, &curves)?;
        canvas.present()?;
    }
    Ok(svg)
}

/// The names of the cases in the order of the rows, and the curves.
fn curves(rows: &[TableRow]) -> (Vec<String>, Vec<Curve>) {
    let mut cases: Vec<String> = Vec::new();
    let mut curves: Vec<Curve> = Vec::new();
    for row in rows {
        let mut name = row.dtype.name().to_owned();
        if let Some(op) = row.op {
            let _ = write!(name, " {op}");
        }
        if let Some(root) = row.root {
            let _ = write!(name, " root {root}");
        }
        let case = cases.iter().position(|known| *known == name).unwrap_or_else(|| {
            cases.push(name);
            cases.len() - 1
        });
        let mut add = |kind: CurveKind, bandwidth: f64, seconds: f64| {
            let known = curves.iter().position(|c| c.case == case && c.kind == kind);
            let index = known.unwrap_or_else(|| {
                let (bandwidth, microseconds) = Default::default();
                curves.push(Curve { case, kind, bandwidth, microseconds });
                curves.len() - 1
            });
            // A logarithmic axis has no place for 0.
            if row.size > 0 && bandwidth > 0.0 && seconds > 0.0 {
                curves[index].bandwidth.insert(row.size, bandwidth / 1e9);
                curves[index].microseconds.insert(row.size, seconds * 1e6);
            }
        };
        if let Some(measured) = &row.out_of_place {
            add(CurveKind::OutOfPlace, measured.busbw, measured.seconds);
            if let Some(roof) = row.roof {
                add(CurveKind::Roof, measured.busbw * measured.seconds / roof, roof);
            }
        }
        if let Some(measured) = &row.in_place {
            add(CurveKind::InPlace, measured.busbw, measured.seconds);
        }
    }
    (cases, curves)
}

/// Draws one value of all curves by size.
fn chart(
    area: &Canvas,
    title: &str,
    curves: &[Curve],
    values: impl Fn(&Curve) -> &BTreeMap<usize, f64>,
) -> Drawn {
    let points = |curve| values(curve).iter().map(|(&size, &value)| (size as f64, value));
    let all: Vec<_> = curves.iter().flat_map(points).collect();
    let middle = ((LEFT_MARGIN + WIDTH / 2 - RIGHT_MARGIN) / 2) as i32;
    text(area, (middle, 10), HPos::Center, TEXT_SIZE, title)?;
    if all.is_empty() {
        let place = (middle, CHARTS_HEIGHT as i32 / 2);
        return text(area, place, HPos::Center, TEXT_SIZE, "no sizes to show");
    }
    let sizes = ticks(all.iter().map(|point| point.0), 2.0, 10);
    let range = ticks(all.iter().map(|point| point.1), 10.0, 12);
    // An axis goes from its first tick to its last. The ticks of plotters itself are often without
    // the last.
    let axis =
        |ticks: Vec<f64>| (ticks[0]..ticks[ticks.len() - 1]).log_scale().with_key_points(ticks);
    let mut chart = ChartBuilder::on(area)
        .margin_top(22)
        .margin_right(RIGHT_MARGIN)
        .x_label_area_size(40)
        .y_label_area_size(LEFT_MARGIN)
        .build_cartesian_2d(axis(sizes), axis(range))?;
    chart
        .configure_mesh()
        .label_style(("sans-serif", TEXT_SIZE))
        .axis_desc_style(("sans-serif", TEXT_SIZE))
        .x_desc("size (bytes)")
        .x_label_formatter(&|size| with_unit(*size))
        .y_label_formatter(&|value| general(*value))
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .draw()?;
    for curve in curves {
        let color = COLORS[curve.case % COLORS.len()];
        let style = color.stroke_width(2);
        match curve.kind.dashes() {
            None => chart.draw_series(LineSeries::new(points(curve), style))?,
            Some((on, off)) => {
                chart.draw_series(DashedLineSeries::new(points(curve), on, off, style))?
            }
        };
        chart.draw_series(points(curve).map(|point| Circle::new(point, 3, color.filled())))?;
    }
    Ok(())
}

/// Draws the meaning of the dashes, then the names of the cases in rows of four.
fn legend(area: &Canvas, cases: &[String], curves: &[Curve]) -> Drawn {
    let entry = |column: usize, row: usize, color: RGBColor, kind: CurveKind, name: &str| {
        let x = (LEFT_MARGIN + column as u32 * LEGEND_COLUMN) as i32;
        let y = ((1 + row as u32) * LEGEND_ROW) as i32;
        let (ends, style) = ([(x, y), (x + 30, y)], color.stroke_width(2));
        match kind.dashes() {
            None => area.draw(&PathElement::new(ends, style))?,
            Some((on, off)) => area.draw(&DashedPathElement::new(ends, on, off, style))?,
        }
        text(area, (x + 36, y), HPos::Left, TEXT_SIZE, name)
    };
    let kinds = [CurveKind::OutOfPlace, CurveKind::InPlace, CurveKind::Roof];
    let shown = kinds.into_iter().filter(|kind| curves.iter().any(|curve| curve.kind == *kind));
    for (column, kind) in shown.enumerate() {
        entry(column, 0, RGBColor(0x44, 0x44, 0x44), kind, kind.name())?;
    }
    for (index, name) in cases.iter().enumerate() {
        let color = COLORS[index % COLORS.len()];
        entry(index % 4, 1 + index / 4, color, CurveKind::OutOfPlace, name)?;
    }
    Ok(())
}

fn text(area: &Canvas, place: (i32, i32), align: HPos, size: i32, text: &str) -> Drawn {
    let style = ("sans-serif", size).into_text_style(area);
    area.draw_text(text, &style.pos(Pos::new(align, VPos::Center)), place)?;
    Ok(())
}

impl CurveKind {
    fn name(self) -> &'static str {
        match self {
            Self::OutOfPlace => "out of place",
            Self::InPlace => "in place",
            Self::Roof => "roof",
        }
    }

    /// The lengths of the dashes and of the gaps between them; None for a solid line.
    fn dashes(self) -> Option<(i32, i32)> {
        match self {
            Self::OutOfPlace => None,
            Self::InPlace => Some((6, 3)),
            Self::Roof => Some((2, 3)),
        }
    }
}

/// The ticks of an axis: powers of `base`, at least two and at most `most`. The first is at or
/// below the smallest value, and the last is at or above the largest.
fn ticks(values: impl Iterator<Item = f64>, base: f64, most: usize) -> Vec<f64> {
    let (min, max) = values.fold((f64::INFINITY, 0.0f64), |(a, b), v| (a.min(v), b.max(v)));
    // 1e-9, so that rounding does not add a power to values that are powers themselves.
    let low = (min.ln() / base.ln() + 1e-9).floor() as i32;
    let high = ((max.ln() / base.ln() - 1e-9).ceil() as i32).max(low + 1);
    let step = ((high - low) as usize).div_ceil(most - 1);
    // The last interval is longer than the others if they do not fit evenly.
    let exponents = (low..=high - step as i32).step_by(step).chain([high]);
    exponents.map(|exponent| base.powi(exponent)).collect()
}

/// A size with a unit, such as 64K.
fn with_unit(bytes: f64) -> String {
    let units = [(f64::from(1 << 30), "G"), (f64::from(1 << 20), "M"), (1024.0, "K")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{}{name}", general(bytes / unit)),
        None => general(bytes),
    }
}

#[cfg(test)]
mod tests {
    use maypole_algorithms::{DType, RedOp};

    use super::*;
    use crate::operation::Operation;
    use crate::report::Measurement;

    fn rows(sizes: &[usize]) -> Vec<TableRow> {
        let row = |&size: &usize| {
            let seconds = 1e-6 + size as f64 / 1e10;
            let busbw = size as f64 / seconds;
            let measured = Some(Measurement { seconds, busbw, ..Measurement::default() });
            TableRow {
                size,
                count: size / 4,
                dtype: DType::Float32,
                operation: Operation::AllReduce,
                op: Some(RedOp::Sum),
                root: None,
                out_of_place: measured.clone(),
                in_place: measured,
                roof: Some(seconds / 2.0),
            }
        };
        sizes.iter().map(row).collect()
    }

    #[test]
    fn every_point_is_inside_a_chart() {
        let svg = svg("all_reduce", 4, &rows(&[8, 1024, 1 << 20])).unwrap();
        // Three curves of three points in two charts.
        assert_eq!(svg.matches("<circle").count(), 18);
        for part in
            ["float sum", "out of place", "in place", "roof", "size (bytes)", "\n1M\n", "\n8\n"]
        {
            assert!(svg.contains(part), "{part} is not in {svg}");
        }
        for circle in svg.lines().filter(|line| line.starts_with("<circle")) {
            let number = |name: &str| -> u32 {
                circle.split(name).nth(1).unwrap().split('"').nth(1).unwrap().parse().unwrap()
            };
            let (x, y) = (number("cx="), number("cy="));
            let in_left = (LEFT_MARGIN..=WIDTH / 2 - RIGHT_MARGIN).contains(&x);
            let in_right = (WIDTH / 2 + LEFT_MARGIN..=WIDTH - RIGHT_MARGIN).contains(&x);
            assert!(in_left || in_right, "{circle}");
            assert!((32..=CHARTS_HEIGHT - 40).contains(&y), "{circle}");
        }
    }

    #[test]
    fn no_size_and_one_size_can_be_drawn() {
        assert!(svg("all_reduce", 1, &rows(&[0])).unwrap().contains("no sizes to show"));
        assert!(!svg("all_reduce", 2, &rows(&[64])).unwrap().contains("NaN"));
    }

    #[test]
    fn ticks_are_powers_of_the_base_around_all_values() {
        let of = |values: [f64; 2], base, most| ticks(values.into_iter(), base, most);
        assert_eq!(of([8.0, 100.0], 2.0, 10), [8.0, 16.0, 32.0, 64.0, 128.0]);
        assert_eq!(of([8.0, 100.0], 2.0, 3), [8.0, 32.0, 128.0]);
        assert_eq!(of([8.0, 200.0], 2.0, 4), [8.0, 32.0, 256.0]);
        assert_eq!(of([10.0, 10.0], 10.0, 12), [10.0, 100.0]);
        assert_eq!(of([0.05, 1.0], 10.0, 12), [0.01, 0.1, 1.0]);
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!([8.0, 2048.0, 1.5e9].map(with_unit), ["8", "2K", "1.39698G"]);
    }
}
