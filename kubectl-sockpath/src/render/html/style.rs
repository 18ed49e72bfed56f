//! The page's style sheet: light and dark, screens of any width, and paper.

/// It needs no font and no picture from anywhere.
pub(super) const STYLE: &str = "\
:root{color-scheme:light dark;--paper:#ffffff;--node:#f1f4f8;--text:#1b2430;--dim:#52606d;--work:#1d6fb8;--wait:#b45309;--path:#33475b;\
--nat:#7b2cbf;--bad:#b42318;--good:#1a7f37;--frame:#74818f;--line:#d5dce4}\
@media screen and (prefers-color-scheme:dark){:root{--paper:#11161d;--node:#1b232d;--text:#e6edf3;--dim:#a9b5c2;--work:#58a6ff;--wait:#e5a449;\
--path:#b9c6d3;--nat:#cba6ff;--bad:#ff9087;--good:#5fd37a;--frame:#66758a;--line:#2c3746}}\
*{box-sizing:border-box}\
body{font:15px/1.5 system-ui,-apple-system,\"Segoe UI\",Roboto,\"DejaVu Sans\",sans-serif;background:var(--paper);color:var(--text);max-width:84rem;\
margin:0 auto;padding:1.5rem 1rem}\
h1{font-size:1.45rem;line-height:1.25;margin:0 0 .3rem;overflow-wrap:anywhere}h2{font-size:1.15rem;margin:2.2rem 0 .6rem;padding-top:.6rem;border-top:1px solid var(--line)}\
h3{font-size:1rem;margin:1.4rem 0 .3rem}p{margin:.2rem 0}a{color:var(--work)}.dim{color:var(--dim)}\
:focus-visible{outline:3px solid var(--work);outline-offset:2px}\
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:.5rem;background:var(--paper);padding:.3rem .6rem}\
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;padding:0;margin:.8rem 0 0}\
.figures{display:flex;flex-wrap:wrap;gap:.5rem;margin:1rem 0 0}.figures div{background:var(--node);border-radius:.4rem;padding:.4rem .8rem;min-width:6.5rem}\
.figures dt{color:var(--dim);font-size:.8rem}.figures dd{margin:0;font-size:1.2rem;font-weight:600;font-variant-numeric:tabular-nums}.figures .bad dd{color:var(--bad)}\
.findings{list-style:none;padding:0;margin:0}.finding{border-left:.3rem solid var(--frame);background:var(--node);border-radius:0 .4rem .4rem 0;\
padding:.5rem .8rem;margin:.5rem 0;overflow-wrap:anywhere}\
.finding.critical{border-color:var(--bad)}.finding.warning{border-color:var(--wait)}.findings strong{font-weight:600}\
.tag{font-size:.75rem;font-weight:600;text-transform:uppercase;letter-spacing:.04em;color:var(--dim)}.critical .tag{color:var(--bad)}.warning .tag{color:var(--wait)}\
.next{margin:.2rem 0 0}.next::before{content:\"\\2192\\00a0\";color:var(--dim)}\
figure{margin:.5rem 0}.pic{display:block;max-width:100%;height:auto}.tall{display:none}\
.scroll{overflow-x:auto}\
table{border-collapse:collapse;width:100%}caption{text-align:left;color:var(--dim);font-size:.85rem}\
th,td{padding:.12rem .5rem;text-align:left;font-weight:400;vertical-align:top}th:first-child,td:first-child{padding-left:0}\
thead th{color:var(--dim);font-size:.85rem}.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}\
tbody th[scope=rowgroup]{font-weight:600;padding-top:.7rem;overflow-wrap:anywhere}\
.absent td,.by{color:var(--dim)}.by{font-size:.85rem;overflow-wrap:anywhere}.nat td{color:var(--nat);overflow-wrap:anywhere}\
.stages .bar{width:38%}.stages .name{min-width:7rem}\
.track{position:relative;height:.8rem;margin-top:.35rem;background:var(--node)}.track i{position:absolute;top:0;bottom:0;min-width:2px;background:var(--work)}\
.track i.wait,.key.wait{background:color-mix(in srgb,var(--wait) 25%,transparent);border:1px solid var(--wait)}\
.key{display:inline-block;width:1rem;height:.7rem;background:var(--work)}\
.seq{list-style:none;padding:0;margin:.4rem 0;max-width:46rem}.seq li{display:grid;grid-template-columns:5.2rem 1fr 4.6rem;gap:.5rem;align-items:stretch}\
.seq .t,.seq .took{font-variant-numeric:tabular-nums;color:var(--dim);font-size:.85rem;padding:.45rem 0}.seq .t{text-align:right}\
.seq .lane{border-left:2px solid var(--frame);border-right:2px solid var(--frame);padding:.15rem 0 .3rem;min-width:0}\
.seq .ends{display:flex;justify-content:space-between;gap:1rem;font-weight:600;border:0;overflow-wrap:anywhere}.seq .ends span:last-child{text-align:right}\
.arrow{position:relative;display:block;text-align:center;border-bottom:2px solid var(--path);padding:0 .8rem;font-size:.9rem;overflow-wrap:anywhere}\
.arrow::after{content:\"\";position:absolute;bottom:-6px;border:5px solid transparent}\
.request .arrow::after{right:0;border-left:8px solid var(--path);border-right:0}.reply .arrow{margin-left:auto}.reply .arrow::after{left:0;border-right:8px solid var(--path);border-left:0}\
.ended .arrow{border-bottom:2px dashed var(--bad);color:var(--bad)}.ended .arrow::after{content:\"\\2717\";border:0;bottom:-.8em;color:var(--bad)}\
.request.ended .arrow::after{border:0;right:-.4em}.reply.ended .arrow::after{border:0;left:-.4em}\
details{margin:.25rem 0}summary{cursor:pointer;overflow-wrap:anywhere}.packet summary{padding:.2rem .3rem;border-radius:.3rem}.packet summary:hover{background:var(--node)}\
.packet[open]{border-left:3px solid var(--frame);padding-left:.6rem}.packet table{font-size:.85rem}.packet td,.packet th{white-space:nowrap}.bad{color:var(--bad)}\
code{font-size:.9em;overflow-wrap:anywhere}footer{margin-top:2.5rem;padding-top:.6rem;border-top:1px solid var(--line);color:var(--dim);font-size:.85rem}\
@media (max-width:58rem){.pic.wide{display:none}.pic.tall{display:block}}\
@media (max-width:46rem){.w,.stages .absent{display:none}.stages .bar{width:30%}.seq li{grid-template-columns:4.4rem 1fr 3.9rem;gap:.3rem}}\
@media print{@page{size:A4;margin:14mm}body{font-size:9.5pt;padding:0;max-width:none}nav,.skip,.stages .by.w,.stages th.w:last-child,.stages .absent{display:none}\
a{color:inherit}h2,h3,thead,tbody th{break-after:avoid}.finding,.seq li,tr,.figures div,.pic{break-inside:avoid}\
.pic.wide,.pic.tall{display:none}.pic.paper{display:block}.pic.tall.paper{width:92mm;max-height:245mm}\
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}";

#[cfg(test)]
mod tests {
    use super::STYLE;

    /// The variables of the light and of the dark scheme.
    fn schemes() -> [Vec<(String, u32)>; 2] {
        let colours = |text: &str| {
            let pairs = text.split("--").filter_map(|part| part.split_once(":#"));
            pairs.map(|(name, value)| (name.to_owned(), u32::from_str_radix(&value[..6], 16).unwrap())).collect()
        };
        let roots: Vec<&str> = STYLE.split(":root{").skip(1).map(|part| part.split('}').next().unwrap()).collect();
        [colours(roots[0]), colours(roots[1])]
    }

    /// Relative luminance, as WCAG 2 defines it.
    fn luminance(colour: u32) -> f64 {
        let channel = |shift: u32| {
            let value = f64::from(colour >> shift & 0xff) / 255.0;
            if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * channel(16) + 0.7152 * channel(8) + 0.0722 * channel(0)
    }

    #[test]
    fn text_has_contrast_in_light_and_dark() {
        for scheme in schemes() {
            let colour = |name: &str| scheme.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("--{name}")).1;
            for (names, least) in [(&["text", "dim", "work", "wait", "nat", "bad", "good"][..], 4.5), (&["path", "frame"], 3.0)] {
                for (name, ground) in names.iter().flat_map(|name| [(name, "paper"), (name, "node")]) {
                    let (a, b) = (luminance(colour(name)) + 0.05, luminance(colour(ground)) + 0.05);
                    let contrast = (a / b).max(b / a);
                    assert!(contrast >= least, "{name} on {ground}: {contrast:.2}");
                }
            }
        }
    }
}
