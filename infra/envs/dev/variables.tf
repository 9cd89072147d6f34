variable "project" {
  type = string
}

variable "region" {
  type    = string
  default = "europe-west4"
}

variable "domain" {
  description = "The domain whose name servers Google's become."
  type        = string
}

variable "host" {
  description = "The public name, within the domain."
  type        = string
}

variable "account" {
  description = "Docker Hub's account that both images are pushed to."
  type        = string
}

variable "worker_version" {
  description = "Version that worker machines begin with until the first deployment, which then decides."
  type        = string
}

variable "admin_ranges" {
  description = "Who may reach the Kubernetes API: name to network, Jenkins' among them."
  type        = map(string)
}

variable "ssh_ranges" {
  description = "Jenkins' networks, for SSH to the workers."
  type        = list(string)
  default     = []
}
